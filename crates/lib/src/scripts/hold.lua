-- Holds back resources that were there when a loss of data was noticed: someone who is not known any more may use
-- them. Needs settle.
--
-- ARGV: resources, at most 200. Returns {'ok'}.
local meta, refused = read_settings('hold_until')
if refused then return refused end
local hold_until = tonumber(meta[SETTINGS + 1] or 0)
if hold_until ~= -1 and hold_until <= NOW then return { 'ok' } end
assure()
for _, resource in ipairs(ARGV) do
  if call('HEXISTS', ITEMS, resource) == 1 then
    mark(resource, 'recovery', hold_until, 'the pool lost its data while leases were held')
  end
end
recount_holds()
resettle(ARGV)
return { 'ok' }
