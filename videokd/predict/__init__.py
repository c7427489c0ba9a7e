"""What a trained model says of videos: the likeliest classes of each, or a timeline of a long one, and a copy of the
video with it written on."""

from videokd.predict.drawing import Caption as Caption
from videokd.predict.drawing import check_copy as check_copy
from videokd.predict.drawing import clock as clock
from videokd.predict.drawing import draw as draw
from videokd.predict.plots import plot as plot
from videokd.predict.timelines import Segment as Segment
from videokd.predict.timelines import Timeline as Timeline
from videokd.predict.timelines import TimelineOptions as TimelineOptions
from videokd.predict.timelines import timeline as timeline
from videokd.predict.videos import VideoPrediction as VideoPrediction
from videokd.predict.videos import VideoPredictions as VideoPredictions
from videokd.predict.videos import find_videos as find_videos
from videokd.predict.videos import predict_videos as predict_videos
from videokd.predict.videos import readable_videos as readable_videos
from videokd.predict.written import predictions_csv as predictions_csv
from videokd.predict.written import predictions_json as predictions_json
from videokd.predict.written import timelines_csv as timelines_csv
from videokd.predict.written import timelines_json as timelines_json
