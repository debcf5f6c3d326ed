-- Removes a pool that has neither items nor leases. Needs only the prelude.
--
-- Returns {'ok', leases left, items left}; the pool is gone when both are 0.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local leases, items = call('ZCARD', LEASES), call('HLEN', ITEMS)
if leases == 0 and items == 0 then call('UNLINK', unpack(KEYS)) end
return { 'ok', leases, items }
