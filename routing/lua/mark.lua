#!lua flags=allow-oom
-- mark(owner, bid, token, i) -> ok | fenced, bids | gone, bids: this owner is about to run item i of a batch that runs apart; -1: no item,
-- from now on its death is nobody's fault
local batches, refusal = held_parents(ARGV[1], ARGV, 2, 1)
if not batches then return refusal end
if ARGV[4] == '-1' then
  call('HDEL', K .. 'b:' .. ARGV[2], 'at')
else
  call('HSET', K .. 'b:' .. ARGV[2], 'at', ARGV[4])
end
return { 'ok' }
