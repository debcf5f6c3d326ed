-- Ends leases by their holders. Needs undo, give_back, base, free_set, offer, settle; what give_back.lua has ended already
-- does not come here.
--
-- ARGV: n times: lease id, token. Returns {'ok', n times 1 (freed) or 0 (not this grant's)}.
local _, refused = read_settings()
if refused then return refused end
release(ids, records)
return { 'ok', results }
