-- Ends leases by their holders. Needs settle.
--
-- ARGV: n times: resource, token. Returns {'ok', n times 1 (freed) or 0 (not this grant's)}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end

local named = {}
for i = 1, #ARGV / 2 do named[i] = ARGV[2 * i - 1] end
local held = call('HMGET', HOLDERS, unpack(named))
local results, resources, records, seen = {}, {}, {}, {}
for i, resource in ipairs(named) do
  local record = held[i]
  results[i] = 0
  if record and sub(record, 1, 16) == ARGV[2 * i] and not seen[resource] then
    seen[resource] = true
    results[i] = 1
    resources[#resources + 1], records[#records + 1] = resource, record
  end
end
if #resources > 0 then release(resources, records) end
return { 'ok', results }
