#!lua flags=allow-oom
-- settle(now, owner, n parents, (bid, token)..., n children, (bid, tier, lane, n, bytes, deadline_ms, not_before_ms, apart, items)...,
-- tier, n counts, (field, by)...) -> ok, woken tiers... | fenced, lost bids | gone, lost bids
-- | unbalanced, items in the children, items in the parents; then nothing is written
local now, owner, parents = now_us(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local batches, items = held_parents(owner, ARGV, 4, parents)
if not batches then return items end
local at = 4 + 2 * parents
local children, written = tonumber(ARGV[at]), 0
for c = 0, children - 1 do written = written + tonumber(ARGV[at + 4 + 9 * c]) end
if written ~= items then return { 'unbalanced', written, items } end

local order, gen = math.huge, now
for _, b in ipairs(batches) do
  order = math.min(order, b.order)
  gen = math.max(gen, b.gen + 1)
  drop_batch(b, owner)
end
local reply = { 'ok' }
for c = 0, children - 1 do
  local i = at + 1 + 9 * c
  local tier, lane = ARGV[i + 1], ARGV[i + 2]
  if asleep(tier, lane, now) then reply[#reply + 1] = tier end
  local due_ms = math.min(tonumber(ARGV[i + 6]), math.floor(now / 1000) + LONGEST_WAIT_MS)
  write_batch(ARGV[i], tier, lane, order, tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), gen, tonumber(ARGV[i + 5]),
    due_ms, ARGV[i + 7], ARGV[i + 8])
end
at = at + 1 + 9 * children
for c = 1, tonumber(ARGV[at + 1]) do
  call('HINCRBY', K .. 'tally:' .. ARGV[at], ARGV[at + 2 * c], ARGV[at + 2 * c + 1])
end
return reply
