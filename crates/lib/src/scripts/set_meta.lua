-- Sets fields of an existing pool. Needs settle.
--
-- ARGV: pairs of field, value. Returns {'ok', the first field's former value ('' = none)}. A pool that grants again does so
-- first to those who wait.
local LINE = 200
local _, refused = read_settings()
if refused then return refused end
local former = call('HGET', META, ARGV[1])
call('HSET', META, unpack(ARGV))
local suspended = SUSPENDED
restate()
if suspended then serve_line(LINE) end
return { 'ok', former or '' }
