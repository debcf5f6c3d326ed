-- Removes bindings. Needs settle, reclaim.
--
-- ARGV: names, at most 200. Returns {'ok', number of bindings removed}.
local _, refused = read_settings()
if refused then return refused end
local removed, changed = 0, {}
for _, name in ipairs(ARGV) do
  local record = call('HGET', BINDS, name)
  if record then
    removed = removed + 1
    changed[#changed + 1] = end_binding(name, record, false)
  end
end
if #changed > 0 then resettle(changed) end
return { 'ok', removed }
