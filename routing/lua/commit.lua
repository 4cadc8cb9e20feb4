#!lua flags=allow-oom
-- commit(now, owner, n parents, (bid, token)..., late_after_ms, keep_s, verdicts, quarantined, by source)
-- -> ok, late, (scope, cells released)... | fenced, bids | gone, bids
-- Called after the database insert. `by source` is a MessagePack array of
--   { source, { pos... }, { packed... }, { packed of replays... }, { void pos... }, { pos whose bytes go... }, { void pos whose bytes stay keep_s... } }
-- packed = "<cell>|<scope>|<scope>...": cell is one character, 0 tn, 1 fp, 2 fn, 3 tp, - a void; the scopes that it counts in. A verdict
-- in no scope (unlabelled) still takes its position.
local now, owner, parents = now_us(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local fenced, gone = lost_parents(owner, ARGV, 4, parents)
if #fenced > 0 then
  call('HINCRBY', K .. 'acct', 'fenced', 1)
  for _, bid in ipairs(gone) do fenced[#fenced + 1] = bid end
  return { 'fenced', fenced }
end
if #gone > 0 then return { 'gone', gone } end
for i = 4, 4 + 2 * parents - 2, 2 do drop_batch(ARGV[i], owner) end
local at = 4 + 2 * parents
local now_ms, late_after_ms = math.floor(now / 1000), tonumber(ARGV[at])
call('HINCRBY', K .. 'acct', 'verdicts', ARGV[at + 2])
call('HINCRBY', K .. 'acct', 'quarantined', ARGV[at + 3])

-- packed verdict -> how many in this commit: few are distinct, so counting costs a call per kind and not per photo.
local kinds, late = {}, 0
local function count(packed) kinds[packed] = (kinds[packed] or 0) + 1 end

local rings = {}
local scopes_of = {}
local function release(source, pos, packed)
  local scopes = scopes_of[packed]
  if not scopes then
    scopes = {}
    for scope in string.gmatch(string.sub(packed, 2), '|([^|]+)') do scopes[#scopes + 1] = scope end
    scopes_of[packed] = scopes
  end
  if #scopes == 0 then return end
  local entry = source .. ':' .. pos .. '=' .. string.sub(packed, 1, 1)
  for _, scope in ipairs(scopes) do
    local ring = rings[scope]
    if not ring then ring = {}; rings[scope] = ring end
    ring[#ring + 1] = entry
  end
end

for _, group in ipairs(cmsgpack.unpack(ARGV[at + 4])) do
  local source, positions, packed, replays = group[1], group[2], group[3], group[4]
  local src, ro = K .. 'src:' .. source, K .. 'ro:' .. source
  local next_pos = tonumber(call('HGET', src, 'next') or 0)
  local waiting = {}
  for i, pos in ipairs(positions) do
    count(packed[i])
    if pos < next_pos then
      late = late + 1
    else
      waiting[#waiting + 1] = int(pos)
      waiting[#waiting + 1] = int(pos) .. '@' .. int(now_ms) .. '|' .. packed[i]
    end
  end
  for _, replay in ipairs(replays) do
    count(replay)
    late = late + 1
  end
  in_chunks('ZADD', ro, waiting)
  -- Heads in turn are released; a head that waited longer than late_after_ms for its predecessor is released over the gap.
  local going = true
  while going do
    local heads = call('ZRANGE', ro, 0, 511, 'WITHSCORES')
    local done = 0
    for i = 1, #heads, 2 do
      local pos = tonumber(heads[i + 1])
      local digits, since, rest = string.match(heads[i], '^(%d+)@(%d+)|(.*)$')
      if pos ~= next_pos and now_ms - tonumber(since) <= late_after_ms then break end
      -- A skipped position takes its slot in the subnet's window, where it is an answer that never came.
      if string.find(rest, '|subnet', 1, true) then
        for gap = math.max(next_pos, pos - 1000), pos - 1 do release(source, int(gap), '-|subnet') end
      end
      release(source, digits, rest)
      next_pos = pos + 1
      done = done + 1
    end
    if done > 0 then call('ZREMRANGEBYRANK', ro, 0, done - 1) end
    going = done == 512
  end
  call('HSET', src, 'next', int(next_pos))
  local prefix = K .. 'img:' .. source .. ':'
  local voids, going_keys = {}, {}
  for _, pos in ipairs(group[5]) do voids[#voids + 1] = source .. ':' .. int(pos) end
  in_chunks('SADD', K .. 'quarantine', voids)
  for _, pos in ipairs(group[6]) do going_keys[#going_keys + 1] = prefix .. int(pos) end
  for i = 1, #going_keys, 1000 do call('UNLINK', unpack(going_keys, i, math.min(i + 999, #going_keys))) end
  for _, pos in ipairs(group[7]) do call('EXPIRE', prefix .. int(pos), ARGV[at + 1]) end
end

for packed, n in pairs(kinds) do
  local cell = string.sub(packed, 1, 1)
  for scope in string.gmatch(string.sub(packed, 2), '|([^|]+)') do call('HINCRBY', K .. 'cnt:' .. scope, cell, n) end
end
for scope, ring in pairs(rings) do
  in_chunks('RPUSH', K .. 'win:' .. scope, ring)
  call('LTRIM', K .. 'win:' .. scope, -1000, -1)
end
if late > 0 then call('HINCRBY', K .. 'acct', 'late', late) end
local reply = { 'ok', late }
for scope, ring in pairs(rings) do
  local cells = {}
  for i, entry in ipairs(ring) do cells[i] = string.sub(entry, -1) end
  reply[#reply + 1] = scope
  reply[#reply + 1] = table.concat(cells)
end
return reply
