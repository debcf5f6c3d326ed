-- Ends a synchronisation: the digest says from now on that nothing changed. Needs origins.
--
-- ARGV: origin, ticket, digest, number of items, '1' if what it no longer declares may stay for a while. Returns {'ok'} or {'superseded'}.
local PEAK_LASTS = 3600000
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local origin, count = ARGV[1], tonumber(ARGV[4])
local entry = read_origin(origin)
-- Said again, as the reply was lost.
if not entry and count == 0 then return { 'ok' } end
if superseded(origin, ARGV[2]) then return { 'superseded' } end
-- What stays for a while is to be found should it stay for another time, or the origin leave the declaration.
if count == 0 and ARGV[5] ~= '1' then
  call('HDEL', ORIGINS, origin)
  return { 'ok' }
end
-- What was declared until now was declared lately, however long ago that began.
if NOW - entry.peak_at > PEAK_LASTS then entry.peak, entry.peak_at = entry.count, NOW end
if count >= entry.peak then entry.peak, entry.peak_at = count, NOW end
entry.digest, entry.count = ARGV[3], count
write_origin(origin, entry)
return { 'ok' }
