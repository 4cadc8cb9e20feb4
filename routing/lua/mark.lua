#!lua flags=allow-oom
-- mark(owner, bid, token, i) -> ok | fenced, bids | gone, bids: this owner is about to run item i of a batch that runs apart.
local fenced, gone = lost_parents(ARGV[1], ARGV, 2, 1)
if #fenced > 0 then return { 'fenced', fenced } end
if #gone > 0 then return { 'gone', gone } end
call('HSET', K .. 'b:' .. ARGV[2], 'at', ARGV[4])
return { 'ok' }
