#!lua
-- replay(now, source, position, with_bytes, bid, tier, bytes, items, row_gen) -> ok | gone | missing
-- A quarantined photo goes its way once more: late by definition. `gone`: it is not in quarantine (any more).
-- row_gen: generation of its row, which must not refuse the new one because the clock went back in between.
local now, source, position = now_us(ARGV[1]), ARGV[2], ARGV[3]
local id = source .. ':' .. position
-- Asked again after a lost reply.
if call('EXISTS', K .. 'b:' .. ARGV[5]) == 1 then return { 'ok' } end
if not call('ZSCORE', K .. 'voids', id) then return { 'gone' } end
if ARGV[4] == '1' and call('EXISTS', K .. 'img:' .. id) == 0 then return { 'missing' } end
call('ZREM', K .. 'voids', id)
call('PERSIST', K .. 'img:' .. id)
call('HINCRBY', K .. 'acct', 'quarantined', -1)
local order = call('HINCRBY', K .. 'acct', 'order', 1) - 1
write_batch(ARGV[5], ARGV[6], 'bulk', order, 1, tonumber(ARGV[7]), math.max(now, tonumber(ARGV[9]) + 1), 0, 0, 0, ARGV[8])
return { 'ok' }
