#!lua flags=no-writes
-- audit() -> (key, type, content)... of every key but photos, then (photo's key, "photo", its ttl in ms or -1)...
-- The whole ledger at one moment, for tests and runs under faults. It uses KEYS: never on a fleet at work.
local reply = {}
for _, key in ipairs(call('KEYS', K .. '*')) do
  local kind, content = call('TYPE', key).ok, ''
  if string.sub(key, 1, #K + 4) == K .. 'img:' then
    kind, content = 'photo', call('PTTL', key)
  elseif kind == 'hash' then
    content = call('HGETALL', key)
  elseif kind == 'zset' then
    content = call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then
    content = call('LRANGE', key, 0, -1)
  elseif kind == 'string' then
    content = call('GET', key)
  end
  reply[#reply + 1] = { string.sub(key, #K + 1), kind, content }
end
return { 'ok', reply }
