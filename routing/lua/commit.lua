#!lua flags=allow-oom
-- commit(now, owner, n parents, (bid, token)..., late_after_ms, keep_s, verdicts, quarantined, by source)
-- -> ok, late, (scope, cells released)... | fenced, bids | gone, bids | unbalanced, verdicts, items in the parents
-- Called after the database insert. `by source` is a MessagePack array of
--   { source, { pos in order... }, { packed... }, { packed of replays... }, { void pos... }, { pos whose bytes go... },
--     { void pos whose bytes stay keep_s... } }
-- packed = "<cell>|<scope>|<scope>...": cell is one character, 0 tn, 1 fp, 2 fn, 3 tp, - a void; the scopes that it counts in.
-- A verdict in no scope (unlabelled) still takes its position.
local now, owner, parents = now_us(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local batches, items = held_parents(owner, ARGV, 4, parents)
if not batches then return items end
local at = 4 + 2 * parents
local now_ms, late_after_ms, keep_s = math.floor(now / 1000), tonumber(ARGV[at]), tonumber(ARGV[at + 1])
local groups = cmsgpack.unpack(ARGV[at + 4])
local ended = 0
for _, group in ipairs(groups) do ended = ended + #group[2] + #group[4] end
if ended ~= items or tonumber(ARGV[at + 2]) + tonumber(ARGV[at + 3]) ~= items then return { 'unbalanced', ended, items } end

for _, b in ipairs(batches) do drop_batch(b, owner) end
call('HINCRBY', K .. 'acct', 'verdicts', ARGV[at + 2])
call('HINCRBY', K .. 'acct', 'quarantined', ARGV[at + 3])

-- What enters each scope's window: cells, and whose they are as runs of positions, "source:first+how many".
local rings = setmetatable({}, {
  __index = function(rings, scope)
    local ring = { n = 0, cells = {}, runs = {}, counts = {} }
    rings[scope] = ring
    return ring
  end,
})

local function end_run(ring)
  if ring.source then
    ring.runs[#ring.runs + 1] = ring.source .. ':' .. int(ring.first) .. '+' .. int(ring.due - ring.first)
  end
end

-- Few packed verdicts are distinct: each is read once, and counting costs a call per kind and not per photo.
local kinds = setmetatable({}, {
  __index = function(kinds, packed)
    local kind = { n = 0, cell = string.sub(packed, 1, 1), rings = {} }
    for scope in string.gmatch(string.sub(packed, 2), '|([^|]+)') do
      kind.rings[#kind.rings + 1] = rings[scope]
      if scope == 'subnet' then kind.in_subnet = true end
    end
    kinds[packed] = kind
    return kind
  end,
})

local function release(source, pos, kind)
  local cell, of = kind.cell, kind.rings
  for r = 1, #of do
    local ring = of[r]
    local n = ring.n + 1
    ring.n = n
    ring.cells[n] = cell
    if ring.due ~= pos or ring.source ~= source then
      end_run(ring)
      ring.source, ring.first = source, pos
    end
    ring.due = pos + 1
  end
end

-- A position that is gone over takes its slot in the subnet's window, where it is an answer that never came.
local function skip(source, from, to, kind)
  if not kind.in_subnet then return end
  for pos = math.max(from, to - 1000), to - 1 do release(source, pos, kinds['-|subnet']) end
end

-- The clock went back since: what waits in ro counts its age from now.
local function from_now(ro)
  local waiting = call('ZRANGE', ro, 0, -1, 'WITHSCORES')
  call('DEL', ro)
  for i = 1, #waiting, 2 do
    waiting[i], waiting[i + 1] = waiting[i + 1], string.gsub(waiting[i], '@%d+|', '@' .. int(now_ms) .. '|', 1)
  end
  in_chunks('ZADD', ro, waiting)
end

local all_late, fallen = 0, 0
for _, group in ipairs(groups) do
  local source, positions, packed, replays = group[1], group[2], group[3], group[4]
  local src, ro = K .. 'src:' .. source, K .. 'ro:' .. source
  local s = call('HMGET', src, 'next', 'keep_s')
  local begun = tonumber(s[1] or 0)
  local next_pos = begun
  for _, replay in ipairs(replays) do kinds[replay].n = kinds[replay].n + 1 end

  -- This commit's verdicts, without those whose turn is over.
  local fresh, packs, count, late = {}, {}, 0, 0
  for i = 1, #positions do
    local pos, kind = positions[i], kinds[packed[i]]
    kind.n = kind.n + 1
    if pos < next_pos then
      late = late + 1
    else
      count = count + 1
      fresh[count], packs[count] = pos, packed[i]
    end
  end

  -- Heads in turn are released, be they from this commit or waiting in ro. A head that waited longer than late_after_ms for
  -- its predecessor is released over the gap. What waits are runs of positions that came together: released together too.
  local i, waiting, w, done, skipped = 1, {}, 0, 0, 0
  local more, page = call('EXISTS', ro) == 1, 1
  local held, since, rest
  local function next_waiting()
    w = w + 1
    if more and w > #waiting then
      -- Mostly the first one tells that nothing can go.
      waiting, w = call('ZRANGE', ro, done, done + page - 1), 1
      more, page = #waiting == page, 64
    end
    held = nil
    if waiting[w] then
      held, since, rest = string.match(waiting[w], '^(%d+)@(%d+)|(.*)$')
      held = tonumber(held)
    end
  end
  next_waiting()
  while true do
    local pos = fresh[i]
    if held and not (pos and pos < held) then
      if held ~= next_pos then
        if tonumber(since) > now_ms then from_now(ro) end
        if now_ms - tonumber(since) <= late_after_ms then break end
        skipped = skipped + held - next_pos
        skip(source, next_pos, held, kinds[string.match(rest, '^[^\n]+')])
        next_pos = held
      end
      for pack in string.gmatch(rest, '[^\n]+') do
        release(source, next_pos, kinds[pack])
        next_pos = next_pos + 1
      end
      done = done + 1
      next_waiting()
    elseif pos == next_pos then
      repeat
        release(source, next_pos, kinds[packs[i]])
        i, next_pos = i + 1, next_pos + 1
      until fresh[i] ~= next_pos
    else
      break
    end
  end
  if done > 0 then call('ZREMRANGEBYRANK', ro, 0, done - 1) end
  local stay = {}
  while i <= count do
    local first = i
    repeat i = i + 1 until fresh[i] ~= fresh[i - 1] + 1
    stay[#stay + 1] = int(fresh[first])
    stay[#stay + 1] = int(fresh[first]) .. '@' .. int(now_ms) .. '|' .. table.concat(packs, '\n', first, i - 1)
  end
  in_chunks('ZADD', ro, stay)
  -- Replays of a source that is remembered no more must not bring it back.
  if next_pos ~= begun then call('HSET', src, 'next', int(next_pos)) end
  if skipped ~= late then call('HINCRBY', src, 'skipped', int(skipped - late)) end
  if s[2] then keep(src) end
  all_late = all_late + late + #replays

  local prefix = K .. 'img:' .. source .. ':'
  local voids, going = {}, {}
  for _, pos in ipairs(group[5]) do
    voids[#voids + 1] = int(now_ms + 1000 * keep_s)
    voids[#voids + 1] = source .. ':' .. int(pos)
  end
  fallen = fallen + #group[5]
  in_chunks('ZADD', K .. 'voids', voids)
  for _, pos in ipairs(group[6]) do going[#going + 1] = prefix .. int(pos) end
  for first = 1, #going, 1000 do call('UNLINK', unpack(going, first, math.min(first + 999, #going))) end
  for _, pos in ipairs(group[7]) do call('EXPIRE', prefix .. int(pos), keep_s) end
end

-- Their bytes went as long ago. A commit takes out more than it brings, so that quarantine cannot grow over its time.
local over = call('ZRANGEBYSCORE', K .. 'voids', '-inf', int(now_ms), 'LIMIT', 0, 1000 + fallen)
in_chunks('ZREM', K .. 'voids', over)

for _, kind in pairs(kinds) do
  for _, ring in ipairs(kind.rings) do ring.counts[kind.cell] = (ring.counts[kind.cell] or 0) + kind.n end
end
local reply = { 'ok', all_late }
for scope, ring in pairs(rings) do
  for cell, n in pairs(ring.counts) do
    if n > 0 then call('HINCRBY', K .. 'cnt:' .. scope, cell, n) end
  end
  local total = call('HINCRBY', K .. 'rings', scope, ring.n)
  if ring.n > 0 then
    local window, cells = K .. 'win:' .. scope, table.concat(ring.cells)
    end_run(ring)
    call('RPUSH', window, cells .. '|' .. table.concat(ring.runs, '\n'))
    -- The oldest entries go when the rest is a whole window without them.
    local left = total
    while left > 1000 do
      local oldest = string.find(call('LINDEX', window, 0), '|', 1, true) - 1
      if left - oldest < 1000 then break end
      call('LPOP', window)
      left = left - oldest
    end
    if left < total then call('HINCRBY', K .. 'rings', scope, left - total) end
    reply[#reply + 1] = scope
    reply[#reply + 1] = cells
  end
end
if all_late > 0 then call('HINCRBY', K .. 'acct', 'late', all_late) end
return reply
