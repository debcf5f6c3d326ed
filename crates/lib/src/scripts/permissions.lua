-- Which commands the user may not run. Read-only. Needs only the prelude.
--
-- ARGV: commands, each followed by the key or channel it is for. Returns {'ok', {command, key, ...}} with those that are denied.
local denied = {}
local function may(command, key)
  -- All that follows them are keys, or channels.
  if command == 'UNLINK' or command == 'SUBSCRIBE' then return redis.acl_check_cmd(command, key) end
  if command == 'PUBLISH' then return redis.acl_check_cmd(command, key, '') end
  if command == 'PING' then return redis.acl_check_cmd(command) end
  return redis.acl_check_cmd(command, key, '0', '0')
end
for i = 1, #ARGV, 2 do
  if not may(ARGV[i], ARGV[i + 1]) then
    denied[#denied + 1] = ARGV[i]
    denied[#denied + 1] = ARGV[i + 1]
  end
end
return { 'ok', denied }
