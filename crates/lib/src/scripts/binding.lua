-- One binding. Read-only. Needs only the prelude.
--
-- ARGV: name. Returns {'ok', its record or false, its expiry (ms) or false, now}.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
return { 'ok', call('HGET', BINDS, ARGV[1]), call('ZSCORE', BIND_EXPIRY, ARGV[1]), NOW }
