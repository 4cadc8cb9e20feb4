#!lua flags=allow-oom
-- close(source, epoch, end) -> ok | zombie | at, offset: nothing more will come; all up to `end` is admitted.
local src = K .. 'src:' .. ARGV[1]
if call('HGET', src, 'epoch') ~= ARGV[2] then return { 'zombie' } end
local offset = tonumber(call('HGET', src, 'offset'))
if offset ~= tonumber(ARGV[3]) then return { 'at', offset } end
call('HSET', src, 'closed', 1)
return { 'ok' }
