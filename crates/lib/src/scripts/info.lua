-- What a pool is and holds, as counts. Read-only, O(origins + reservations). Needs only the prelude.
--
-- Returns {'ok', meta (field, value, ...), origins (origin, entry, ...), items, free, leases, quarantined, bindings,
-- reserved, draining, now}.
local MANY = 1000
local refused = unusable(call('HGET', META, 'schema'))
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
    if records[i] and not leased[i] and not held[i] then reserved = reserved + 1 end
  end
end
return { 'ok', call('HGETALL', META), call('HGETALL', ORIGINS), items, free, leases, quarantined, call('HLEN', BINDS),
  reserved, math.max(0, free + leases + quarantined + reserved - items), NOW }
