"""Jobs: what runs, waits, failed and finished; cancel, retry, open the result, delete."""

from mmcd.studio.jobs_page import jobs_page

jobs_page()
