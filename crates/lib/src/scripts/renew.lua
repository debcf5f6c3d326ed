-- Extends leases by their holders, and confirms permanent ones. Needs free_set.
--
-- ARGV: incarnation of the pool that granted, then n times: id, time to live (ms; -1 = permanent), the grant's
-- holder record. Returns {'ok', n results}: 1 (extended), 0 (lost: ended, or its time is over), 2 (the pool's maximum
-- refuses this time to live), and that maximum (ms; 0 = none); or {'incarnation', the one found}.
--
-- A token above `last` proves that this server lost writes (a failover, an old snapshot): `last` is raised, so that the
-- token is never given out again, and if nobody has the resource the lease is taken back.
local meta, refused = read_settings('longest', 'incarnation', 'max_ttl')
if refused then return refused end
local longest, incarnation, max_ttl = tonumber(meta[SETTINGS + 1]), meta[SETTINGS + 2], tonumber(meta[SETTINGS + 3])
if incarnation ~= ARGV[1] then return { 'incarnation', incarnation } end

local named = {}
for i = 1, (#ARGV - 1) / 3 do named[i] = ARGV[3 * i - 1] end
local records = call('HMGET', HOLDERS, unpack(named))
local expiries = call('ZMSCORE', LEASES, unpack(named))
local new_last, new_longest = LAST, longest
local results, leases, adopted, taken = {}, {}, {}, {}
for i, id in ipairs(named) do
  local ttl, record = tonumber(ARGV[3 * i]), ARGV[3 * i + 1]
  local token = sub(record, 1, 16)
  local forgotten = tonumber(token) > LAST
  if forgotten then new_last = math.max(new_last, tonumber(token)) end
  local held
  if forgotten then
    local resource = resource_of(id)
    held = not expiries[i] and not adopted[id] and call('HEXISTS', ITEMS, resource) == 1 and room_of(resource) > (taken[resource] or 0)
  else
    held = records[i] and sub(records[i], 1, 16) == token and expiries[i] and tonumber(expiries[i]) > NOW
  end
  results[i] = 0
  if held and max_ttl > 0 and (ttl == -1 or ttl > max_ttl) then
    results[i] = 2
  elseif held then
    results[i] = 1
    if forgotten then
      adopted[id] = record
      taken[resource_of(id)] = (taken[resource_of(id)] or 0) + 1
    end
    if new_longest ~= -1 and (ttl == -1 or ttl > new_longest) then new_longest = ttl end
    -- A renewal that was overtaken by a later one must not cut that short: its holder relies on it. Only a permanent
    -- lease can be given an end.
    local expiry, current = NOW + ttl, tonumber(expiries[i] or 0)
    if current > expiry and current < math.huge then expiry = current end
    leases[#leases + 1] = ttl == -1 and '+inf' or format('%.0f', expiry)
    leases[#leases + 1] = id
  end
end
if next(adopted) then assure() end
if new_last ~= LAST or new_longest ~= longest then
  call('HSET', META, 'last', format('%.0f', new_last), 'longest', format('%.0f', new_longest))
end
for id, record in pairs(adopted) do
  call('HSET', HOLDERS, id, record)
  call('HINCRBY', META, 'granted', 1)
end
if #leases > 0 then call('ZADD', LEASES, unpack(leases)) end
for id in pairs(adopted) do
  local resource = resource_of(id)
  if SHARED then call('ZADD', SHARES, 0, id) end
  if not SHARED or room_of(resource) <= 0 then
    leave_free({ resource }, INDEXES and { call('HGET', ITEMS, resource) }, { call('ZSCORE', FREE, resource) })
  end
  if not SHARED then call('ZREM', QUARANTINE, resource) end
end
return { 'ok', results, max_ttl }
