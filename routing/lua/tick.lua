#!lua flags=allow-oom
-- tick(now, known stop...) -> per stop: stop, ready batches; then 'owners', owner, beat, ...
-- Once a second in every process: back-off ends, and batches whose earliest deadline has come go to `route` unless somebody holds them.
-- A batch of a tier that no known stop serves goes there too: the profile has it no more.
local now_ms = math.floor(now_us(ARGV[1]) / 1000)
move_due(now_ms)
for _, bid in ipairs(call('ZRANGEBYSCORE', K .. 'due', '-inf', int(now_ms), 'LIMIT', 0, 1000)) do
  local b = call('HMGET', K .. 'b:' .. bid, 'tier', 'lane', 'order', 'n')
  local waits = false
  if not b[1] then
    dangling(K .. 'due', bid, 'ZREM')
  elseif call('ZREM', K .. 'ready:' .. b[1] .. ':' .. b[2], bid) == 1 then
    use('ready:' .. b[1], -b[4])
    waits = true
  elseif call('ZREM', K .. 'later', bid) == 1 then
    use('later:' .. b[1], -b[4])
    waits = true
  end
  if waits then
    call('ZREM', K .. 'due', bid)
    -- Those of its items that are not overdue go back from there.
    call('HSET', K .. 'b:' .. bid, 'tier', 'route', 'from', b[1])
    shelve(bid, 'route', b[2], b[3], b[4], 0)
  end
end

local known = { route = true, collector = true }
for i = 2, #ARGV do known[ARGV[i]] = true end
local counts = call('HGETALL', K .. 'use')
for i = 1, #counts, 2 do
  local tier = string.match(counts[i], '^ready:(.+)$')
  if tier and not known[tier] and tonumber(counts[i + 1]) > 0 then
    for _, lane in ipairs({ 'live', 'bulk' }) do
      for _, bid in ipairs(call('ZRANGE', K .. 'ready:' .. tier .. ':' .. lane, 0, 99)) do
        local b = call('HMGET', K .. 'b:' .. bid, 'order', 'n')
        call('ZREM', K .. 'ready:' .. tier .. ':' .. lane, bid)
        use('ready:' .. tier, -(b[2] or 0))
        if b[1] then
          call('HSET', K .. 'b:' .. bid, 'tier', 'route', 'from', tier)
          shelve(bid, 'route', lane, b[1], b[2], 0)
        end
      end
    end
  end
end

local reply = {}
for i = 2, #ARGV do
  reply[#reply + 1] = ARGV[i]
  reply[#reply + 1] = call('ZCARD', K .. 'ready:' .. ARGV[i] .. ':live') + call('ZCARD', K .. 'ready:' .. ARGV[i] .. ':bulk')
end
reply[#reply + 1] = 'owners'
for _, x in ipairs(call('HGETALL', K .. 'owners')) do reply[#reply + 1] = x end
return reply
