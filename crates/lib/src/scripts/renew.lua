-- Extends leases by their holders, and confirms permanent ones. Needs only the prelude.
--
-- ARGV: incarnation of the pool that granted, then n times: resource, time to live (ms; -1 = permanent), the grant's
-- holder record. Returns {'ok', n results}: 1 (extended), 0 (lost: ended, or its time is over), 2 (the pool's maximum
-- refuses this time to live), and that maximum (ms; 0 = none); or {'incarnation', the one found}.
--
-- A token above `last` proves that this server lost writes (a failover, an old snapshot): `last` is raised, so that the
-- token is never given out again, and if nobody has the resource the lease is taken back.
local meta = call('HMGET', META, 'last', 'longest', 'schema', 'incarnation', 'max_ttl')
local refused = unusable(meta[3])
if refused then return refused end
if meta[4] ~= ARGV[1] then return { 'incarnation', meta[4] } end

local named = {}
for i = 1, (#ARGV - 1) / 3 do named[i] = ARGV[3 * i - 1] end
local records = call('HMGET', HOLDERS, unpack(named))
local expiries = call('ZMSCORE', LEASES, unpack(named))
local last, longest, max_ttl = tonumber(meta[1]), tonumber(meta[2]), tonumber(meta[5])
local new_last, new_longest = last, longest
local results, leases, adopted = {}, {}, {}
for i, resource in ipairs(named) do
  local ttl, record = tonumber(ARGV[3 * i]), ARGV[3 * i + 1]
  local token = sub(record, 1, 16)
  local forgotten = tonumber(token) > last
  if forgotten then new_last = math.max(new_last, tonumber(token)) end
  local held
  if forgotten then
    held = not expiries[i] and not adopted[resource] and call('HEXISTS', ITEMS, resource) == 1
  else
    held = records[i] and sub(records[i], 1, 16) == token and expiries[i] and tonumber(expiries[i]) > NOW
  end
  results[i] = 0
  if held and max_ttl > 0 and (ttl == -1 or ttl > max_ttl) then
    results[i] = 2
  elseif held then
    results[i] = 1
    if forgotten then adopted[resource] = record end
    if new_longest ~= -1 and (ttl == -1 or ttl > new_longest) then new_longest = ttl end
    -- A renewal that was overtaken by a later one must not cut that short: its holder relies on it. Only a permanent
    -- lease can be given an end.
    local expiry, current = NOW + ttl, tonumber(expiries[i] or 0)
    if current > expiry and current < math.huge then expiry = current end
    leases[#leases + 1] = ttl == -1 and '+inf' or format('%.0f', expiry)
    leases[#leases + 1] = resource
  end
end
if next(adopted) then assure() end
if new_last ~= last or new_longest ~= longest then
  call('HSET', META, 'last', format('%.0f', new_last), 'longest', format('%.0f', new_longest))
end
for resource, record in pairs(adopted) do
  call('HSET', HOLDERS, resource, record)
  call('HINCRBY', META, 'granted', 1)
end
if #leases > 0 then call('ZADD', LEASES, unpack(leases)) end
for resource in pairs(adopted) do
  call('ZREM', FREE, resource)
  call('ZREM', QUARANTINE, resource)
end
return { 'ok', results, max_ttl }
