-- Ends marks of resources: of one cause, so that a probe's success never ends a manual quarantine, or of every cause.
-- Needs settle.
--
-- ARGV: cause ('' = every one), then at most 200 resources. Returns {'ok', number of resources that had such a mark}.
local _, refused = read_settings()
if refused then return refused end
assure()
local cause, changed = ARGV[1], {}
for i = 2, #ARGV do
  local resource = ARGV[i]
  local json = call('HGET', MARKS, resource)
  if json then
    local marks = cjson.decode(json)
    if cause == '' then
      call('HDEL', MARKS, resource)
      changed[#changed + 1] = resource
    elseif marks[cause] then
      marks[cause] = nil
      if next(marks) then call('HSET', MARKS, resource, cjson.encode(marks)) else call('HDEL', MARKS, resource) end
      changed[#changed + 1] = resource
    end
  end
end
if #changed > 0 then
  recount_holds()
  resettle(changed)
end
return { 'ok', #changed }
