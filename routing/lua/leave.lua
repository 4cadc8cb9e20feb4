#!lua flags=allow-oom
-- leave(owner): an owner that ends in order gives back what it holds, without a fault, and is gone.
for _, bid in ipairs(call('HKEYS', K .. 'own:' .. ARGV[1])) do give_back(bid, ARGV[1]) end
call('HDEL', K .. 'owners', ARGV[1])
return { 'ok' }
