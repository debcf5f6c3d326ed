-- Takes a resource out of circulation, now or when its lease ends. Needs settle.
--
-- ARGV: resource, cause, duration (ms; -1 = until released), reason.
-- Returns {'ok', 1 (in effect) or 0 (when its lease ends)} or {'no-resource'}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local resource, duration = ARGV[1], tonumber(ARGV[3])
if call('HEXISTS', ITEMS, resource) == 0 then return { 'no-resource' } end
assure()
mark(resource, ARGV[2], duration == -1 and -1 or NOW + duration, ARGV[4])
call('HINCRBY', META, 'quarantined', 1)
recount_holds()
resettle({ resource })
return { 'ok', call('ZSCORE', LEASES, resource) and 0 or 1 }
