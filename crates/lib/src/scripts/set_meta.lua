-- Sets fields of an existing pool. Needs only the prelude.
--
-- ARGV: pairs of field, value. Returns {'ok', the first field's former value ('' = none)}.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local former = call('HGET', META, ARGV[1])
call('HSET', META, unpack(ARGV))
return { 'ok', former or '' }
