-- What a pool is and holds, as counts. Read-only, O(origins + reservations). Needs only the prelude.
--
-- Returns {'ok', meta (field, value, ...), origins (origin, entry, ...), items, free, leases, quarantined, bindings,
-- reserved, draining, now, how many wait, live sessions}. Of a shared pool, free is what has room, leases are held by as
-- many, and draining is what is held and not declared any more.
local MANY = 1000
local _, refused = read_settings()
if refused then return refused end
local items, free, leases = call('HLEN', ITEMS), call('ZCARD', FREE), call('ZCARD', LEASES)
local quarantined, reservations, reserved = call('ZCARD', QUARANTINE), call('HLEN', RESERVED), 0
if reservations > MANY then
  -- Whatever is nowhere else; what is draining meanwhile is not told apart.
  reserved = math.max(0, items - free - leases - quarantined)
elseif reservations > 0 then
  local named = call('HKEYS', RESERVED)
  local records, leased = call('HMGET', ITEMS, unpack(named)), call('ZMSCORE', LEASES, unpack(named))
  local held = call('ZMSCORE', QUARANTINE, unpack(named))
  for i = 1, #named do
    if records[i] and (SHARED or not leased[i]) and not held[i] then reserved = reserved + 1 end
  end
end
local draining = math.max(0, free + leases + quarantined + reserved - items)
if SHARED then draining = call('ZCOUNT', MISSING, '+inf', '+inf') end
return { 'ok', call('HGETALL', META), call('HGETALL', ORIGINS), items, free, leases, quarantined, call('HLEN', BINDS),
  reserved, draining, NOW, call('ZCARD', WAITERS), call('ZCOUNT', SESSIONS, format('(%d', NOW), '+inf') }
