-- Ends leases whoever holds them: an operator's word. Needs settle, origins, leave.
--
-- ARGV: resources, at most 200. Returns {'ok', number of leases ended}; of a resource of a shared pool at most 200 end, so
-- that it may have to be said again.
local _, refused = read_settings()
if refused then return refused end
local ids, seen = {}, {}
if SHARED then
  for _, resource in ipairs(ARGV) do
    if #ids < REVOKED_AT_ONCE and not seen[resource] then
      seen[resource] = true
      for _, id in ipairs(shares_of(resource, REVOKED_AT_ONCE - #ids)) do ids[#ids + 1] = id end
    end
  end
else
  local held = call('HMGET', HOLDERS, unpack(ARGV))
  local expiries = call('ZMSCORE', LEASES, unpack(ARGV))
  for i, resource in ipairs(ARGV) do
    if (held[i] or expiries[i]) and not seen[resource] then
      seen[resource] = true
      ids[#ids + 1] = resource
    end
  end
end
if #ids > 0 then
  assure()
  revoke_leases(ids)
end
return { 'ok', #ids }
