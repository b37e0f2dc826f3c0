-- ARGV: gen, member, fence, up to which value the member acts from here on, how many oids, oids that it has written without a word since it
-- was last told, then any number of: token of an open write, how many oids, oids that it may write.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
local written = tonumber(ARGV[5])
for i = 6, 5 + written do renew(ARGV[i]) end
local at = 6 + written
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  for i = at + 2, at + 1 + count do add_doubt(ARGV[i], ARGV[at]) end
  at = at + 2 + count
end
acts_upon(ARGV[2], ARGV[4])
return { 'ok' }
