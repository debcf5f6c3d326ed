-- Places resources anew, wherever they are: after a change of order, or to mend what `check` found. Needs settle.
--
-- ARGV: resources, at most 200. Returns {'ok'}. A lease without a holder, or a holder without a lease, ends.
local _, refused = read_settings()
if refused then return refused end
assure()
if #ARGV == 0 then
  recount_holds()
  return { 'ok' }
end
if not SHARED then
  local held = call('HMGET', HOLDERS, unpack(ARGV))
  local expiries = call('ZMSCORE', LEASES, unpack(ARGV))
  for i, resource in ipairs(ARGV) do
    if held[i] and not expiries[i] then call('HDEL', HOLDERS, resource) end
    if expiries[i] and not held[i] then call('ZREM', LEASES, resource) end
  end
end
recount_holds()
resettle(ARGV)
return { 'ok' }
