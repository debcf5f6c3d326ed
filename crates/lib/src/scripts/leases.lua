-- Leases, a page of them: of the whole pool in no order, or of one resource in the order of their tokens. Read-only.
-- Needs base.
--
-- ARGV: resource ('' = of all), cursor ('0' = from the beginning).
-- Returns {'ok', next cursor ('0' = end), {lease id, expiry, holder record, 1 if the resource is declared, ...}}.
local PAGE = 200
local _, refused = read_settings()
if refused then return refused end
local resource, cursor, ids = ARGV[1], ARGV[2], {}
if resource == '' then
  local page = call('ZSCAN', LEASES, cursor, 'COUNT', PAGE)
  cursor = page[1]
  for i = 1, #page[2], 2 do ids[#ids + 1] = page[2][i] end
elseif SHARED then
  local from = cursor == '0' and '[' .. resource .. '\0' or '(' .. cursor
  ids = call('ZRANGEBYLEX', SHARES, from, '(' .. resource .. '\1', 'LIMIT', 0, PAGE)
  cursor = #ids < PAGE and '0' or ids[PAGE]
else
  ids = { resource }
end
local listed = {}
for _, id in ipairs(ids) do
  local expiry = call('ZSCORE', LEASES, id)
  if expiry then
    listed[#listed + 1] = id
    listed[#listed + 1] = expiry
    listed[#listed + 1] = call('HGET', HOLDERS, id) or ''
    listed[#listed + 1] = call('HEXISTS', ITEMS, resource_of(id))
  end
end
return { 'ok', cursor, listed }
