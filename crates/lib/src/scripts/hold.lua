-- Holds back resources that were there when a loss of data was noticed: someone who is not known any more may use
-- them. Needs settle.
--
-- ARGV: resources, at most 200. Returns {'ok'}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown', 'hold_until')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local hold = tonumber(meta[5] or 0)
if hold ~= -1 and hold <= NOW then return { 'ok' } end
assure()
for _, resource in ipairs(ARGV) do
  if call('HEXISTS', ITEMS, resource) == 1 then
    mark(resource, 'recovery', hold, 'the pool lost its data while leases were held')
  end
end
recount_holds()
resettle(ARGV)
return { 'ok' }
