#!lua flags=allow-oom
-- reap(owner, beat_seen) -> alive | ok, batches given back: an owner is dead whose beat somebody saw stand still for a lease.
-- Its batches run apart from now on; one that already did puts the death on the item that it was at.
local owner = ARGV[1]
if call('HGET', K .. 'owners', owner) ~= ARGV[2] then return { 'alive' } end
local bids = call('HKEYS', K .. 'own:' .. owner)
for _, bid in ipairs(bids) do
  local b = call('HMGET', K .. 'b:' .. bid, 'apart', 'at')
  if b[1] == '1' and b[2] then call('HINCRBY', K .. 'b:' .. bid, 'death:' .. b[2], 1) end
  if b[1] then call('HSET', K .. 'b:' .. bid, 'apart', 1) end
  give_back(bid, owner)
end
call('DEL', K .. 'own:' .. owner)
call('HDEL', K .. 'owners', owner)
call('HINCRBY', K .. 'acct', 'reaped', 1)
return { 'ok', #bids }
