#!lua flags=allow-oom
-- drop(id...) -> how many left quarantine for good; their bytes go, their rows in the database stay.
local dropped = 0
for _, id in ipairs(ARGV) do
  dropped = dropped + call('SREM', K .. 'quarantine', id)
  call('UNLINK', K .. 'img:' .. id)
end
return { 'ok', dropped }
