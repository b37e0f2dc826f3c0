-- ARGV: gen, member, fence, '1' if nothing that was under way when the generation was young can commit any more. Whether that is still to be
-- found out, and the server processes that members write through.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
if ARGV[4] == '1' then redis.call('HDEL', H, 'orphans') end
local reply = { 'ok', redis.call('HGET', H, 'orphans') or '' }
for _, field in ipairs(reply[2] == '' and {} or fields('b:')) do
  reply[#reply + 1] = string.match(field, '^b:[^:]*:(.*)$')
end
return reply
