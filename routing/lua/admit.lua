#!lua
-- admit(now, source, epoch, from, to, max_items, max_bytes, lane, stored, bad, n, batches) with `stored` = the positions whose bytes
-- must be in the store (MessagePack array; empty where pixels live elsewhere), then n batches of
-- (bid, tier, n, bytes, deadline_ms, items) each.
-- -> ok, woken tiers... | zombie | at, offset | full, items, bytes | missing, position | unbalanced, items in the batches, positions
local now = now_us(ARGV[1])
local source, epoch, from, to = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local max_items, max_bytes, lane = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local stored, count = cmsgpack.unpack(ARGV[9]), tonumber(ARGV[10])
local src = K .. 'src:' .. source
local s = call('HMGET', src, 'epoch', 'offset', 'keep_s')
if s[1] ~= epoch then return { 'zombie' } end
local offset = tonumber(s[2])
if offset ~= from then return { 'at', offset } end

local bytes, items = 0, 0
for b = 0, count - 1 do
  items = items + tonumber(ARGV[11 + 6 * b + 2])
  bytes = bytes + tonumber(ARGV[11 + 6 * b + 3])
end
if items ~= to - from then return { 'unbalanced', items, to - from } end
local held = call('HMGET', K .. 'use', 'items', 'bytes')
local items_now, bytes_now = tonumber(held[1] or 0), tonumber(held[2] or 0)
-- A fleet that holds nothing takes any batch: a bound below one batch would otherwise wait for ever.
if items_now > 0 and (items_now + to - from > max_items or bytes_now + bytes > max_bytes) then
  return { 'full', items_now, bytes_now }
end
local keys = {}
for i, position in ipairs(stored) do keys[i] = K .. 'img:' .. source .. ':' .. int(position) end
for first = 1, #keys, 1000 do
  local last = math.min(first + 999, #keys)
  if call('EXISTS', unpack(keys, first, last)) < last - first + 1 then
    for i = first, last do
      if call('EXISTS', keys[i]) == 0 then return { 'missing', stored[i] } end
    end
  end
end

for _, key in ipairs(keys) do call('PERSIST', key) end
call('HSET', src, 'offset', int(to))
if s[3] then
  keep(src)
  call('HINCRBY', K .. 'acct', 'brief', int(to - from))
end
local order = call('HINCRBY', K .. 'acct', 'order', int(to - from)) - (to - from)
call('HINCRBY', K .. 'acct', 'admitted', int(to - from))
local reply = { 'ok' }
for b = 0, count - 1 do
  local at = 11 + 6 * b
  local tier, n = ARGV[at + 1], tonumber(ARGV[at + 2])
  if asleep(tier, lane, now) then reply[#reply + 1] = tier end
  write_batch(ARGV[at], tier, lane, order, n, tonumber(ARGV[at + 3]), now, tonumber(ARGV[at + 4]), 0, 0, ARGV[at + 5])
  order = order + n
end
return reply
