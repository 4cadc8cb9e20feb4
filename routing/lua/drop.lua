#!lua flags=allow-oom
-- drop(id...) -> how many left quarantine for good; their bytes go, their rows in the database stay.
local dropped = 0
for _, id in ipairs(ARGV) do
  -- The bytes of a photo that is on its way, or was sent on it once more, stay.
  if call('ZREM', K .. 'voids', id) == 1 then
    dropped = dropped + 1
    call('UNLINK', K .. 'img:' .. id)
  end
end
return { 'ok', dropped }
