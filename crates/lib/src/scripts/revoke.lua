-- Ends leases whoever holds them: an operator's word. Needs settle.
--
-- ARGV: resources. Returns {'ok', number of leases ended}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local resources, records, seen = {}, {}, {}
local held = call('HMGET', HOLDERS, unpack(ARGV))
local expiries = call('ZMSCORE', LEASES, unpack(ARGV))
for i, resource in ipairs(ARGV) do
  if (held[i] or expiries[i]) and not seen[resource] then
    seen[resource] = true
    resources[#resources + 1], records[#records + 1] = resource, held[i]
  end
end
if #resources > 0 then
  assure()
  for i = 1, #resources do records[i] = records[i] or '' end
  release(resources, records)
  call('HINCRBY', META, 'revoked', #resources)
end
return { 'ok', #resources }
