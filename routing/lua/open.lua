#!lua
-- open(source, lane, keep_s) -> epoch, offset: a new epoch, so that whoever produced this source before is a zombie from now on.
-- keep_s is said once, when the source is new; 0: it is remembered for ever.
local src = K .. 'src:' .. ARGV[1]
local epoch = call('HINCRBY', src, 'epoch', 1)
if epoch == 1 and ARGV[3] ~= '0' then call('HSET', src, 'keep_s', ARGV[3]) end
call('HSETNX', src, 'offset', 0)
call('HSETNX', src, 'next', 0)
call('HSET', src, 'lane', ARGV[2])
call('HDEL', src, 'closed')
keep(src)
return { epoch, tonumber(call('HGET', src, 'offset')) }
