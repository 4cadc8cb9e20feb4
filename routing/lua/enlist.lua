#!lua flags=allow-oom
-- enlist(owner, digest) -> ok | other, digest: a process joins; all who live at once run one profile.
local running = call('GET', K .. 'profile')
if running and running ~= ARGV[2] and call('HLEN', K .. 'owners') > 0 then return { 'other', running } end
call('SET', K .. 'profile', ARGV[2])
call('HSET', K .. 'owners', ARGV[1], 0)
return { 'ok' }
