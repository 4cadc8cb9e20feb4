#!lua flags=allow-oom
-- commit(now, owner, n parents, (bid, token)..., late_after_ms, keep_s, verdicts, quarantined, by source)
-- -> ok, late, (scope, cells released)... | fenced, bids | gone, bids | unbalanced, verdicts, items in the parents
-- Called after the database insert. `by source` is a MessagePack array of
--   { source, { pos... }, { packed... }, { packed of replays... }, { void pos... }, { pos whose bytes go... },
--     { void pos whose bytes stay keep_s... } }
-- packed = "<cell>|<scope>|<scope>...": cell is one character, 0 tn, 1 fp, 2 fn, 3 tp, - a void; the scopes that it counts in.
-- A verdict in no scope (unlabelled) still takes its position.
local now, owner, parents = now_us(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local batches, items = held_parents(owner, ARGV, 4, parents)
if not batches then return items end
local at = 4 + 2 * parents
local now_ms, late_after_ms = math.floor(now / 1000), tonumber(ARGV[at])
local groups = cmsgpack.unpack(ARGV[at + 4])
local ended = 0
for _, group in ipairs(groups) do ended = ended + #group[2] + #group[4] end
if ended ~= items or tonumber(ARGV[at + 2]) + tonumber(ARGV[at + 3]) ~= items then return { 'unbalanced', ended, items } end

for _, b in ipairs(batches) do drop_batch(b, owner) end
call('HINCRBY', K .. 'acct', 'verdicts', ARGV[at + 2])
call('HINCRBY', K .. 'acct', 'quarantined', ARGV[at + 3])

local rings = {}
-- Few packed verdicts are distinct: each is read once, and counting costs a call per kind and not per photo.
local kinds = setmetatable({}, {
  __index = function(kinds, packed)
    local kind = { n = 0, cell = string.sub(packed, 1, 1), scopes = {}, rings = {} }
    for scope in string.gmatch(string.sub(packed, 2), '|([^|]+)') do
      local ring = rings[scope] or { n = 0, entries = {}, cells = {} }
      rings[scope] = ring
      kind.scopes[#kind.scopes + 1] = scope
      kind.rings[#kind.rings + 1] = ring
      if scope == 'subnet' then kind.in_subnet = true end
    end
    kind.windowed = #kind.scopes > 0
    kinds[packed] = kind
    return kind
  end,
})

local function release(source, pos, kind)
  local cell = kind.cell
  local entry = source .. ':' .. int(pos) .. '=' .. cell
  for _, ring in ipairs(kind.rings) do
    local n = ring.n + 1
    ring.n, ring.entries[n], ring.cells[n] = n, entry, cell
  end
end

local all_late = 0
for _, group in ipairs(groups) do
  local source, positions, packed, replays = group[1], group[2], group[3], group[4]
  local src, ro = K .. 'src:' .. source, K .. 'ro:' .. source
  local next_pos = tonumber(call('HGET', src, 'next') or 0)
  for _, replay in ipairs(replays) do kinds[replay].n = kinds[replay].n + 1 end

  -- This commit's verdicts in order of position, without those whose turn is over.
  local fresh, packed_at, late = {}, {}, 0
  for i, pos in ipairs(positions) do
    local kind = kinds[packed[i]]
    kind.n = kind.n + 1
    if pos < next_pos then
      late = late + 1
    else
      fresh[#fresh + 1] = pos
      packed_at[pos] = packed[i]
    end
  end
  table.sort(fresh)

  -- Heads in turn are released, be they from this commit or waiting in ro. A head that waited longer than late_after_ms for
  -- its predecessor is released over the gap.
  local i, waiting, w, done, skipped = 1, {}, 1, 0, 0
  local more = call('EXISTS', ro) == 1
  while true do
    if more and w > #waiting then
      waiting, w = call('ZRANGE', ro, done, done + 511, 'WITHSCORES'), 1
      more = #waiting == 1024
    end
    local pos, kind, held = fresh[i], nil, tonumber(waiting[w + 1])
    if held and not (pos and pos < held) then
      local since, rest = string.match(waiting[w], '^%d+@(%d+)|(.*)$')
      if held ~= next_pos and now_ms - tonumber(since) <= late_after_ms then break end
      pos, kind, w, done = held, kinds[rest], w + 2, done + 1
    elseif pos then
      if pos ~= next_pos then break end
      kind, i = kinds[packed_at[pos]], i + 1
    else
      break
    end
    if pos ~= next_pos then
      skipped = skipped + pos - next_pos
      -- A position that is gone over takes its slot in the subnet's window, where it is an answer that never came.
      if kind.in_subnet then
        for gap = math.max(next_pos, pos - 1000), pos - 1 do release(source, gap, kinds['-|subnet']) end
      end
    end
    if kind.windowed then release(source, pos, kind) end
    next_pos = pos + 1
  end
  if done > 0 then call('ZREMRANGEBYRANK', ro, 0, done - 1) end
  local stay = {}
  for j = i, #fresh do
    local pos = int(fresh[j])
    stay[#stay + 1] = pos
    stay[#stay + 1] = pos .. '@' .. int(now_ms) .. '|' .. packed_at[fresh[j]]
  end
  in_chunks('ZADD', ro, stay)
  call('HSET', src, 'next', int(next_pos))
  if skipped ~= late then call('HINCRBY', src, 'skipped', int(skipped - late)) end
  all_late = all_late + late + #replays

  local prefix = K .. 'img:' .. source .. ':'
  local voids, going = {}, {}
  for _, pos in ipairs(group[5]) do voids[#voids + 1] = source .. ':' .. int(pos) end
  in_chunks('SADD', K .. 'quarantine', voids)
  for _, pos in ipairs(group[6]) do going[#going + 1] = prefix .. int(pos) end
  for first = 1, #going, 1000 do call('UNLINK', unpack(going, first, math.min(first + 999, #going))) end
  for _, pos in ipairs(group[7]) do call('EXPIRE', prefix .. int(pos), ARGV[at + 1]) end
end

for _, kind in pairs(kinds) do
  for _, scope in ipairs(kind.scopes) do
    if kind.n > 0 then call('HINCRBY', K .. 'cnt:' .. scope, kind.cell, kind.n) end
  end
end
local reply, scopes = { 'ok', all_late }, {}
for scope, ring in pairs(rings) do
  scopes[#scopes + 1] = scope
  if ring.n > 0 then
    local window = K .. 'win:' .. scope
    -- What this very commit pushes out again need not go in.
    call('RPUSH', window, unpack(ring.entries, math.max(1, ring.n - 999), ring.n))
    call('LTRIM', window, -1000, -1)
    reply[#reply + 1] = scope
    reply[#reply + 1] = table.concat(ring.cells)
  end
end
in_chunks('SADD', K .. 'scopes', scopes)
if all_late > 0 then call('HINCRBY', K .. 'acct', 'late', all_late) end
return reply
