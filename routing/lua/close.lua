#!lua flags=allow-oom
-- close(source, epoch): nothing more will come.
local src = K .. 'src:' .. ARGV[1]
if call('HGET', src, 'epoch') ~= ARGV[2] then return { 'zombie' } end
call('HSET', src, 'closed', 1)
return { 'ok' }
