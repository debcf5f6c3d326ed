-- Ends a synchronisation: the digest says from now on that nothing changed. Needs origins.
--
-- ARGV: origin, ticket, digest, number of items. Returns {'ok'} or {'superseded'}.
local PEAK_LASTS = 3600000
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local origin, count = ARGV[1], tonumber(ARGV[4])
if superseded(origin, ARGV[2]) then return { 'superseded' } end
local entry = read_origin(origin)
if count == 0 then
  call('HDEL', ORIGINS, origin)
  return { 'ok' }
end
if count >= entry.peak or NOW - entry.peak_at > PEAK_LASTS then entry.peak, entry.peak_at = count, NOW end
entry.digest, entry.count = ARGV[3], count
write_origin(origin, entry)
return { 'ok' }
