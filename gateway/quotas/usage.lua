-- Add what a gateway counted to the use of its days, if that was not done already.
-- KEYS: the number of the gateway's last batch; then the use of each day.
-- ARGV: the number of this batch, how long all is kept in seconds; then for each day: how many fields, and each field with what to add to it.
-- Returns 1; or 0 where it had been added, and only the answer was lost.
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local at = 3
for day = 2, #KEYS do
  local fields = tonumber(ARGV[at])
  for field = 1, fields do
    redis.call('HINCRBY', KEYS[day], ARGV[at + 2 * field - 1], ARGV[at + 2 * field])
  end
  redis.call('EXPIRE', KEYS[day], ARGV[2])
  at = at + 2 * fields + 1
end
return 1
