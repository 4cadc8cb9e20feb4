#!lua
-- open(source, lane) -> epoch, offset: a new epoch, so that whoever produced this source before is a zombie from now on.
local src = K .. 'src:' .. ARGV[1]
local epoch = call('HINCRBY', src, 'epoch', 1)
call('HSETNX', src, 'offset', 0)
call('HSETNX', src, 'next', 0)
call('HSET', src, 'lane', ARGV[2])
call('HDEL', src, 'closed')
return { epoch, tonumber(call('HGET', src, 'offset')) }
