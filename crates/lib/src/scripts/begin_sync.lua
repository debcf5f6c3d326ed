-- Begins a synchronisation of one origin: guards against a shrink, hands out a ticket, forgets the digest. Needs origins.
--
-- ARGV: origin, digest, number of items, most percent that may leave (100 = any), 'look' to write nothing.
-- Returns {'ok', 'unchanged'} | {'ok', 'held', peak, least allowed} | {'ok', 'ticket', ticket}, to who only looks '' for a
-- ticket.
local PEAK_LASTS = 3600000 -- ms for which the highest count is remembered
local meta = call('HMGET', META, 'schema', 'last_ticket')
local refused = unusable(meta[1])
if refused then return refused end
local origin, digest, count, percent = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local entry = read_origin(origin)
-- What a declaration never had, or let go of, is as it should be. Calls may have added items without a synchronisation.
if not entry and count == 0 and origin ~= 'api' then return { 'ok', 'unchanged' } end
entry = entry or { count = 0, peak = 0, peak_at = NOW }
if entry.digest == digest then return { 'ok', 'unchanged' } end
local peak = entry.peak
if NOW - entry.peak_at > PEAK_LASTS then peak = entry.count end
local least = math.ceil(peak * (100 - percent) / 100)
if count < least then return { 'ok', 'held', peak, least } end
if ARGV[5] == 'look' then return { 'ok', 'ticket', '' } end
local ticket = format('%.0f', math.max((tonumber(meta[2]) or 0) + 1, NOW_US))
call('HSET', META, 'last_ticket', ticket)
entry.ticket, entry.digest = ticket, nil
write_origin(origin, entry)
return { 'ok', 'ticket', ticket }
