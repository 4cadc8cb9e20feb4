-- Key layout. Every script is this file followed by its own; nothing outside these scripts writes these keys
-- (but the photo store, which sets img:* with a TTL before admit).
--
-- src:<S>             hash  epoch offset next skipped lane closed keep_s   offset: admitted up to; next: window cursor; skipped:
--                           positions that the windows went over and whose verdicts are still to come; keep_s: with it, TTL while
--                           nothing is on its way
-- b:<bid>             hash  tier from lane order n bytes gen claims apart at death:<i> deadline items    exists <=> not settled
-- ready:<tier>:<lane> zset  bid -> order    order = admission number of its oldest item; no clock, so reaped work keeps its place
-- later               zset  bid -> due (ms)                 back-off
-- due                 zset  bid -> earliest deadline (ms) in it
-- owners              hash  owner -> beat                   a counter; never a TTL, never a time
-- own:<owner>         hash  bid -> token:beat_at_claim      each batch is in exactly one of ready, later, own
-- use                 hash  items bytes ready:<tier> held:<tier> later:<tier>    items (bytes: photo store); changed only here
-- attended            hash  stop -> until (ms): somebody looks at its ready list again by then, nobody need ring; never far ahead
-- turns               hash  tier -> claims that found both lanes waiting
-- img:<S>:<pos>       bytes                                 TTL until admitted, none after, UNLINK at commit
-- ro:<S>              zset  "pos@since|packed\npacked..." -> pos    verdicts of consecutive positions, waiting for their turn
-- win:<scope>         list  "cells|S:first+count\n..."      last 1,000 cells and more; an entry a commit: cells, and their positions
-- rings               hash  scope -> cells in win:<scope>   every scope that was counted in
-- cnt:<scope>         hash  all-time counts by cell
-- acct                hash  order admitted verdicts quarantined fenced late reconciled reaped dangling brief   brief: admitted of
--                           sources with keep_s
-- voids               zset  "S:pos" of a void -> until (ms); replay and drop take it out, commits those whose time is over
-- tally:<tier>        hash  scored settled escalated abstained device_us
-- profile             string  digest of the profile that the living owners run
--
-- Invariant A: every b:<bid> is in exactly one of ready, later, own:*.
-- Invariant B: positions < src.offset are each in exactly one of: a batch, ro, released or late (pos < next).
--              A position in a batch is at or after next, unless it is one of src.skipped or a replay.
-- Invariant C: admitted = verdicts + quarantined + items in batches.

local K = '{nf}:'
local call = redis.call

-- Redis's own time in microseconds, unless a test passes one in.
local function now_us(given)
  if given ~= '0' then return tonumber(given) end
  local t = call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- Times further ahead than anybody writes them are of a clock that went back since: nobody waits for them.
local LONGEST_ATTENDANCE_MS, LONGEST_WAIT_MS = 1000, 600000

-- Lua prints large numbers as 1.7e+15; a count must stay a count.
local function int(x) return string.format('%.0f', x) end

local function use(field, by)
  if by ~= 0 then call('HINCRBY', K .. 'use', field, int(by)) end
end

-- Whether a stop must be rung for what is about to be written to it: nothing waits there yet, and nobody looks by himself.
local function asleep(stop, lane, now)
  if call('ZCARD', K .. 'ready:' .. stop .. ':' .. lane) > 0 then return false end
  local until_ms = call('HGET', K .. 'attended', stop)
  if not until_ms then return true end
  local left_ms = tonumber(until_ms) - now / 1000
  return left_ms < 0 or left_ms > LONGEST_ATTENDANCE_MS
end

-- Where a batch waits: `ready`, or `later` until due_ms.
local function shelve(bid, tier, lane, order, n, due_ms)
  if due_ms > 0 then
    call('ZADD', K .. 'later', int(due_ms), bid)
    use('later:' .. tier, n)
  else
    call('ZADD', K .. 'ready:' .. tier .. ':' .. lane, int(order), bid)
    use('ready:' .. tier, n)
  end
end

local function write_batch(bid, tier, lane, order, n, bytes, gen, deadline_ms, due_ms, apart, items)
  call('HSET', K .. 'b:' .. bid, 'tier', tier, 'lane', lane, 'order', int(order), 'n', int(n), 'bytes', int(bytes),
    'gen', int(gen), 'deadline', int(deadline_ms), 'apart', apart, 'claims', 0, 'items', items)
  if deadline_ms > 0 then call('ZADD', K .. 'due', int(deadline_ms), bid) end
  use('items', n)
  use('bytes', bytes)
  shelve(bid, tier, lane, order, n, due_ms)
end

-- A settled parent, as held_parents() read it.
local function drop_batch(b, owner)
  call('DEL', K .. 'b:' .. b.bid)
  call('HDEL', K .. 'own:' .. owner, b.bid)
  if b.deadline > 0 then call('ZREM', K .. 'due', b.bid) end
  use('items', -b.n)
  use('bytes', -b.bytes)
  use('held:' .. b.tier, -b.n)
end

-- A batch that somebody deleted by hand must stop nobody: the account will say that its items are lost.
local function dangling(key, bid, remove)
  call(remove, key, bid)
  call('HINCRBY', K .. 'acct', 'dangling', 1)
end

-- Back to where it was claimed from, at its old order. What its owner was at is over: the next owner's death must not count for it.
local function give_back(bid, owner)
  if call('EXISTS', K .. 'b:' .. bid) == 0 then return dangling(K .. 'own:' .. owner, bid, 'HDEL') end
  local b = call('HMGET', K .. 'b:' .. bid, 'tier', 'lane', 'order', 'n')
  call('HDEL', K .. 'b:' .. bid, 'at')
  call('HDEL', K .. 'own:' .. owner, bid)
  use('held:' .. b[1], -b[4])
  shelve(bid, b[1], b[2], b[3], b[4], 0)
end

local function end_waits(from_ms, to_ms)
  for _, bid in ipairs(call('ZRANGEBYSCORE', K .. 'later', from_ms, to_ms, 'LIMIT', 0, 1000)) do
    local b = call('HMGET', K .. 'b:' .. bid, 'tier', 'lane', 'order', 'n')
    if b[1] then
      call('ZREM', K .. 'later', bid)
      use('later:' .. b[1], -b[4])
      shelve(bid, b[1], b[2], b[3], b[4], 0)
    else
      dangling(K .. 'later', bid, 'ZREM')
    end
  end
end

-- What is due in `later` moves to `ready`; at most 1,000 a call, and as many of those whose time is nonsense.
local function move_due(now_ms)
  end_waits('-inf', int(now_ms))
  end_waits('(' .. int(now_ms + LONGEST_WAIT_MS), '+inf')
end

-- A source that is not to be resumed is forgotten when nothing of it was on its way for keep_s.
local function keep(src)
  local s = call('HMGET', src, 'keep_s', 'offset', 'next', 'skipped')
  if s[1] and s[2] == s[3] and tonumber(s[4] or 0) == 0 then call('EXPIRE', src, s[1]) elseif s[1] then call('PERSIST', src) end
end

-- parents[(bid, token)...] that this owner holds, and the items in them; or nil and the refusal, when one is not: fenced = it exists under
-- another token, gone = it exists no more. Only reads, but for the count of refusals.
local function held_parents(owner, args, first, count)
  local batches, items, fenced, gone, seen = {}, 0, {}, {}, {}
  for i = first, first + 2 * count - 2, 2 do
    local bid, token = args[i], args[i + 1]
    local b = call('HMGET', K .. 'b:' .. bid, 'tier', 'n', 'bytes', 'order', 'gen', 'deadline')
    local held = call('HGET', K .. 'own:' .. owner, bid)
    if not b[1] then
      gone[#gone + 1] = bid
    elseif not held or string.sub(held, 1, #token + 1) ~= token .. ':' then
      fenced[#fenced + 1] = bid
    elseif not seen[bid] then
      -- Once, however often it is named.
      seen[bid] = true
      items = items + tonumber(b[2])
      batches[#batches + 1] = {
        bid = bid, tier = b[1], n = tonumber(b[2]), bytes = tonumber(b[3]), order = tonumber(b[4]), gen = tonumber(b[5]),
        deadline = tonumber(b[6]),
      }
    end
  end
  if #fenced > 0 then
    call('HINCRBY', K .. 'acct', 'fenced', 1)
    for _, bid in ipairs(gone) do fenced[#fenced + 1] = bid end
    return nil, { 'fenced', fenced }
  end
  if #gone > 0 then return nil, { 'gone', gone } end
  return batches, items
end

-- A call with many values in pieces that Lua's unpack can take.
local function in_chunks(command, key, values)
  for i = 1, #values, 1000 do
    call(command, key, unpack(values, i, math.min(i + 999, #values)))
  end
end
