#!lua flags=allow-oom
-- mark(owner, bid, token, i) -> ok | fenced, bids | gone, bids: this owner is about to run item i of a batch that runs apart.
local batches, refusal = held_parents(ARGV[1], ARGV, 2, 1)
if not batches then return refusal end
call('HSET', K .. 'b:' .. ARGV[2], 'at', ARGV[4])
return { 'ok' }
