-- A session says that it is alive. Needs free_set, offer, settle, reclaim.
--
-- ARGV: session, time to live (ms; 0 = it ends, and its leases with it, 200 a call), '1' to begin it.
-- Returns {'ok', 1 (alive) or 0 (over: it had not been heard of in time, or has not begun), number of its leases (of one
-- that ends: those left to end), what `sessions` had of it before (ms; 0 = nothing), and has now}; or {'ttl', maximum}:
-- the pool's maximum refuses to begin one whose leases would outlast it for so long.
local meta, refused = read_settings('longest', 'max_ttl')
if refused then return refused end
assure()
local session, ttl = ARGV[1], tonumber(ARGV[2])
local over = tonumber(call('ZSCORE', SESSIONS, session) or 0)
local function count_leases()
  return call('ZLEXCOUNT', SESSION_LEASES, '[' .. session .. '\0', '(' .. session .. '\1')
end
local leases = count_leases()
if ttl == 0 then
  if over > 0 then call('ZADD', SESSIONS, format('%d', NOW - CLOCK_SLACK), session) end
  reclaim(200)
  return { 'ok', 0, count_leases(), over, over }
end
if over <= NOW and not (over == 0 and ARGV[3] == '1') then return { 'ok', 0, leases, over, over } end
local longest, max_ttl = tonumber(meta[SETTINGS + 1]), tonumber(meta[SETTINGS + 2])
if over == 0 and max_ttl > 0 and ttl > max_ttl then return { 'ttl', max_ttl } end
if longest ~= -1 and ttl > longest then call('HSET', META, 'longest', format('%d', ttl)) end
local alive = math.max(over, NOW + ttl)
call('ZADD', SESSIONS, format('%.0f', alive), session)
return { 'ok', 1, leases, over, alive }
