#!lua flags=allow-oom
-- heartbeat(owner, held token...) -> dead | ok
-- An entry that this owner does not know it holds, claimed two beats ago or more (its reply was lost), goes back without a fault.
local owner = ARGV[1]
if call('HEXISTS', K .. 'owners', owner) == 0 then return { 'dead' } end
local beat = call('HINCRBY', K .. 'owners', owner, 1)
local held = {}
for i = 2, #ARGV do held[ARGV[i]] = true end
local own = call('HGETALL', K .. 'own:' .. owner)
for i = 1, #own, 2 do
  local token, claimed_at = string.match(own[i + 1], '^(.*):(%d+)$')
  if not held[token] and beat - tonumber(claimed_at) >= 2 then
    give_back(own[i], owner)
    call('HINCRBY', K .. 'acct', 'reconciled', 1)
  end
end
return { 'ok' }
