#!lua flags=allow-oom
-- settle(now, owner, n parents, (bid, token)..., n children, (bid, tier, lane, n, bytes, deadline_ms, not_before_ms, apart, items)...,
-- tier, n counts, (field, by)...) -> ok, woken tiers... | fenced, lost bids | gone, lost bids; then nothing is written
local now, owner, parents = now_us(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local fenced, gone = lost_parents(owner, ARGV, 4, parents)
if #fenced > 0 then
  call('HINCRBY', K .. 'acct', 'fenced', 1)
  for _, bid in ipairs(gone) do fenced[#fenced + 1] = bid end
  return { 'fenced', fenced }
end
if #gone > 0 then return { 'gone', gone } end

local order, gen = math.huge, now
for i = 4, 4 + 2 * parents - 2, 2 do
  local b = call('HMGET', K .. 'b:' .. ARGV[i], 'order', 'gen')
  order = math.min(order, tonumber(b[1]))
  gen = math.max(gen, tonumber(b[2]) + 1)
  drop_batch(ARGV[i], owner)
end
local at = 4 + 2 * parents
local reply = { 'ok' }
for c = 1, tonumber(ARGV[at]) do
  local i = at + 1 + 9 * (c - 1)
  local tier, lane = ARGV[i + 1], ARGV[i + 2]
  if call('ZCARD', K .. 'ready:' .. tier .. ':' .. lane) == 0 then reply[#reply + 1] = tier end
  write_batch(ARGV[i], tier, lane, order, tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), gen, tonumber(ARGV[i + 5]),
    tonumber(ARGV[i + 6]), ARGV[i + 7], ARGV[i + 8])
end
at = at + 1 + 9 * tonumber(ARGV[at])
for c = 1, tonumber(ARGV[at + 1]) do
  call('HINCRBY', K .. 'tally:' .. ARGV[at], ARGV[at + 2 * c], ARGV[at + 2 * c + 1])
end
return reply
