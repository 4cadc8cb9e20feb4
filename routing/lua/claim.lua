#!lua flags=allow-oom
-- claim(now, tier, owner, token, max_items, bulk_percent, attend_ms, busy_ms) -> dead | ok, now_us, ready items left, then per batch
-- (bid, lane, order, gen, claims, apart, [i, deaths, ...], items, n, bytes, from)
-- A claim asked again under its token gets the same batches; all are of one lane.
-- attend_ms: this owner looks again within so long when the stop is dry, busy_ms: when it hands something out; until then nobody need
-- ring. 0: it does not say when; negative: leaves that as it is.
local now = now_us(ARGV[1])
local tier, owner, token, max_items = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local beat = call('HGET', K .. 'owners', owner)
if not beat then return { 'dead' } end
local own = K .. 'own:' .. owner

local bids = {}
local held = call('HGETALL', own)
for i = 1, #held, 2 do
  if string.sub(held[i + 1], 1, #token + 1) == token .. ':' then bids[#bids + 1] = held[i] end
end

if #bids == 0 then
  move_due(math.floor(now / 1000))
  local lanes = { 'live', 'bulk' }
  local ready = { live = K .. 'ready:' .. tier .. ':live', bulk = K .. 'ready:' .. tier .. ':bulk' }
  -- Every so often bulk goes first, so that a busy live lane cannot starve it. Negative: live work only.
  if tonumber(ARGV[6]) < 0 then
    lanes = { 'live' }
  elseif call('EXISTS', ready.live, ready.bulk) == 2
    and call('HINCRBY', K .. 'turns', tier, 1) * tonumber(ARGV[6]) % 100 < tonumber(ARGV[6]) then
    lanes = { 'bulk', 'live' }
  end
  local total, full = 0, false
  for _, lane in ipairs(lanes) do
    while not full and (total == 0 or lane == lanes.taken) do
      local bid = call('ZRANGE', ready[lane], 0, 0)[1]
      if not bid then break end
      local b = call('HMGET', K .. 'b:' .. bid, 'n', 'apart')
      local n = tonumber(b[1])
      -- A batch that somebody deleted by hand must not stop its tier: the account will say that its items are lost.
      if not n then
        call('ZREM', ready[lane], bid)
        call('HINCRBY', K .. 'acct', 'dangling', 1)
      elseif #bids > 0 and (total + n > max_items or b[2] == '1') then
        full = true
      else
        call('ZREM', ready[lane], bid)
        call('HSET', own, bid, token .. ':' .. beat)
        call('HINCRBY', K .. 'b:' .. bid, 'claims', 1)
        bids[#bids + 1] = bid
        lanes.taken = lane
        total = total + n
        full = b[2] == '1' or total >= max_items
      end
    end
  end
  use('ready:' .. tier, -total)
  use('held:' .. tier, total)
end

local looks_ms = tonumber(ARGV[#bids == 0 and 7 or 8])
if looks_ms > 0 then
  call('HSET', K .. 'attended', tier, int(math.floor(now / 1000) + looks_ms))
elseif looks_ms == 0 then
  call('HDEL', K .. 'attended', tier)
end

local left = tonumber(call('HGET', K .. 'use', 'ready:' .. tier) or 0)
local reply = { 'ok', int(now), left }
for _, bid in ipairs(bids) do
  local b = call('HMGET', K .. 'b:' .. bid, 'lane', 'order', 'gen', 'claims', 'apart', 'items', 'n', 'bytes', 'from')
  local deaths = {}
  if b[5] == '1' then
    local fields = call('HGETALL', K .. 'b:' .. bid)
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 6) == 'death:' then
        deaths[#deaths + 1] = tonumber(string.sub(fields[i], 7))
        deaths[#deaths + 1] = tonumber(fields[i + 1])
      end
    end
  end
  reply[#reply + 1] = { bid, b[1], b[2], b[3], b[4], b[5], deaths, b[6], b[7], b[8], b[9] or '' }
end
return reply
