-- Removes a pool that has neither items nor leases. Needs only the prelude.
--
-- ARGV: incarnation: one that has been made anew since is left alone.
-- Returns {'ok', leases left, items left}; the pool is gone when both are 0.
local meta = call('HMGET', META, 'schema', 'incarnation')
local refused = unusable(meta[1])
if refused then return refused end
if meta[2] ~= ARGV[1] then return { 'unknown' } end
local leases, items = call('ZCARD', LEASES), call('HLEN', ITEMS)
if leases == 0 and items == 0 then call('UNLINK', unpack(KEYS)) end
return { 'ok', leases, items }
