-- Reclaims what is over. Needs settle, reclaim.
--
-- ARGV: the most things to reclaim (1 to 200).
-- Returns {'ok', {resource, holder record, ...} of expired leases, resources back from quarantine, ended bindings,
-- 1 if there may be more}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local expired, due, unbound, more = reclaim(tonumber(ARGV[1]))
return { 'ok', expired, due, unbound, more and 1 or 0 }
